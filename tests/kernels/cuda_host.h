// cuda_host.h - run CUDA C++ kernel source on the CPU, one thread block at a time, one fiber per CUDA thread.
// Compiled by a plain host C++17 compiler (no nvcc, no CUDA runtime). For LOGIC tests only.
//  -DSHIM_UCONTEXT   use ucontext instead of the x86-64 asm switch
//  -fsanitize=address / thread are supported (fibers are announced to the sanitizer)
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <string>
#include <vector>
#include <utility>
#include <algorithm>
#include <sys/mman.h>
#include <ucontext.h>
#include <link.h>
#include <cxxabi.h>
#include <typeinfo>
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {} };
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
// One copy of __shared__ per OS thread (blocks run one after another). thread_local puts all of it into the .so's TLS segment, which
// bounds it exactly, so it can be poisoned per block (GCC ignores section("..") on statics of template functions, so that trick fails).
// ASan puts no redzones around thread_local, hence plain static there (out-of-bounds checks, no poison).
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif
#ifndef __restrict__
#define __restrict__ __restrict
#endif
#define CUDA_HOST_SHIM 1

#if defined(__SANITIZE_ADDRESS__)
extern "C" { void __sanitizer_start_switch_fiber(void**, const void*, size_t); void __sanitizer_finish_switch_fiber(void*, const void**, size_t*); void __asan_unpoison_memory_region(const void*, size_t); }
#endif
#if defined(__SANITIZE_THREAD__)
extern "C" { void* __tsan_create_fiber(unsigned); void __tsan_destroy_fiber(void*); void __tsan_switch_to_fiber(void*, unsigned);
             void* __tsan_get_current_fiber(); void __tsan_acquire(void*); void __tsan_release(void*); void AnnotateBenignRaceSized(const char*, int, void*, size_t, const char*); }
#define SHIM_NOSAN __attribute__((no_sanitize_thread))
#else
#define SHIM_NOSAN
#endif

namespace shim {
enum St : uint8_t { READY, WAIT_BLOCK, WAIT_WARP, DONE };
struct Group { unsigned mask, arrived, gen; int line; alignas(16) unsigned char slot[2][32][16]; };
struct Warp { Group g[8]; int ng; unsigned exist; };
struct Fiber { void* sp; ucontext_t uc; uint3 tid; unsigned lin, lane; Warp* warp; St st; int line; char* stk; void* fake; void* tsan; };
static const size_t STK = 128 << 10; static const int MAXT = 1024;
static Fiber F[MAXT], MAINF; static Fiber* cur; static Warp W[32]; static unsigned NT;
static uint3 g_bid; static dim3 g_bdim, g_gdim; static unsigned alive, arrived_n, bgen; static int bline;
static int red_acc[2][3]; static char bar_tag[2], launch_tag;
static char err[512]; static unsigned long n_switch, n_bar, n_shfl; static uint64_t rng; static int order; // 0 fwd, 1 reverse, 2 random
static unsigned char* dyn = nullptr; static size_t dyn_sz = 0;
static size_t main_stk_size; static void (*thunk)(void*); static void* thunk_arg;

#if defined(__x86_64__) && !defined(SHIM_UCONTEXT)
extern "C" void shim_swap(void** from, void* to);
asm(".text\n.type shim_swap,@function\nshim_swap:\n push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp,(%rdi)\n mov %rsi,%rsp\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
#endif
SHIM_NOSAN inline void jump(Fiber* to) {
  Fiber* from = cur; if (from == to) return; cur = to; n_switch++;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from->st == DONE && from != &MAINF ? nullptr : &from->fake, to->stk, to == &MAINF ? main_stk_size : STK);
#endif
#if defined(__SANITIZE_THREAD__)
  if (to->tsan != from->tsan) __tsan_switch_to_fiber(to->tsan, 1);   // 1 = no happens-before from the switch itself
#endif
#if defined(__x86_64__) && !defined(SHIM_UCONTEXT)
  shim_swap(&from->sp, to->sp);
#else
  swapcontext(&from->uc, &to->uc);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from->fake, nullptr, nullptr);
#endif
}
SHIM_NOSAN inline void fail(const char* m, int line) {
  if (!err[0]) snprintf(err, sizeof err, "%s (block %u,%u,%u thread %u line %d)", m, g_bid.x, g_bid.y, g_bid.z, cur->lin, line);
  jump(&MAINF); abort();
}
SHIM_NOSAN inline Fiber* pick() {
  if (order == 2) { rng = rng * 6364136223846793005ull + 1442695040888963407ull; unsigned s = (rng >> 33) % NT;
    for (unsigned i = 0; i < NT; i++) { unsigned k = s + i; if (k >= NT) k -= NT; if (F[k].st == READY) return &F[k]; } return nullptr; }
  unsigned w0 = cur == &MAINF ? 0 : cur->lin & ~31u;            // own warp first (cheap), then the others
  if (cur != &MAINF) { for (unsigned i = 1; i < 32; i++) { unsigned k = w0 + ((cur->lin + (order ? 32 - i : i)) & 31); if (k < NT && F[k].st == READY) return &F[k]; } }
  for (unsigned i = 0; i < NT; i++) { unsigned k = order ? NT - 1 - i : i; if (F[k].st == READY) return &F[k]; }
  return nullptr;
}
SHIM_NOSAN inline void block_wait(St s, int line) { cur->st = s; cur->line = line; Fiber* n = pick();
  if (!n) fail("deadlock: no runnable thread (divergent barrier / shuffle mask names a thread that never arrives)", line);
  jump(n); }
SHIM_NOSAN inline int block_sync(int line, int pred = 0, int op = 0) {
  n_bar++;
  if (arrived_n == 0) bline = line; else if (bline != line) fail("divergent __syncthreads: threads wait at different lines", line);
  if (alive != NT) fail("__syncthreads after some threads of the block returned", line);
  unsigned ph = bgen & 1;
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&bar_tag[ph]);
#endif
  if (arrived_n == 0) { red_acc[ph][0] = 0; red_acc[ph][1] = 1; red_acc[ph][2] = 0; }
  red_acc[ph][0] |= pred != 0; red_acc[ph][1] &= pred != 0; red_acc[ph][2] += pred != 0;
  if (++arrived_n == NT) { arrived_n = 0; bgen++; for (unsigned i = 0; i < NT; i++) if (F[i].st == WAIT_BLOCK) F[i].st = READY;
    if (order == 2) { cur->st = READY; Fiber* n = pick(); if (n) jump(n); } }
  else block_wait(WAIT_BLOCK, line);
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&bar_tag[ph]);
#endif
  return red_acc[ph][op];
}
template<class T> SHIM_NOSAN inline T exchange(unsigned mask, T v, int src, int line, bool mem_order = false) {
  static_assert(sizeof(T) <= 16, ""); n_shfl++;
  Warp* w = cur->warp; unsigned bit = 1u << cur->lane; mask &= w->exist;
  if (!(mask & bit)) fail("calling lane is not in its own _sync mask", line);
  Group* g = nullptr; for (int i = 0; i < w->ng; i++) if (w->g[i].mask == mask) g = &w->g[i];
  if (!g) { for (int i = 0; i < w->ng; i++) if (!w->g[i].arrived) { g = &w->g[i]; break; }
    if (!g) { if (w->ng == 8) fail("too many concurrent shuffle masks", line); g = &w->g[w->ng++]; }
    g->mask = mask; g->arrived = 0; }
  if (!g->arrived) g->line = line; else if (g->line != line) fail("lanes of one _sync mask are at different shuffles", line);
  unsigned ph = g->gen & 1; __builtin_memcpy(g->slot[ph][cur->lane], &v, sizeof(T));
#if defined(__SANITIZE_THREAD__)
  if (mem_order) __tsan_release((char*)g + ph);
#endif
  g->arrived |= bit;
  if (g->arrived == mask) { g->arrived = 0; g->gen++; unsigned b = cur->lin & ~31u;
    for (unsigned i = 0; i < 32 && b + i < NT; i++) if ((mask >> i & 1) && F[b + i].st == WAIT_WARP) F[b + i].st = READY; }
  else block_wait(WAIT_WARP, line);
#if defined(__SANITIZE_THREAD__)
  if (mem_order) __tsan_acquire((char*)g + ph);
#endif
  T r; if (src >= 0 && (mask >> src & 1)) __builtin_memcpy(&r, g->slot[ph][src], sizeof(T)); else memset((void*)&r, 0xff, sizeof r); // NaN: value from a lane outside the mask
  return r;
}
SHIM_NOSAN inline int seg(int lane, int width, int src) { return (lane & ~(width - 1)) | (src & (width - 1)); }

SHIM_NOSAN static void entry() {
#if defined(__SANITIZE_ADDRESS__)
  const void* b; size_t s; __sanitizer_finish_switch_fiber(nullptr, &b, &s); if (!MAINF.stk) { MAINF.stk = (char*)b; main_stk_size = s; }  // the first fiber comes from main
#endif
  thunk(thunk_arg);
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&launch_tag);            // the end of a launch orders it before the next launch (one stream)
#endif
  cur->st = DONE; alive--;
  if (arrived_n) fail("a thread returned while others wait at __syncthreads", cur->line);
  Fiber* n = pick(); if (!n && alive) fail("deadlock at exit: threads still wait", cur->line);
  jump(n ? n : &MAINF); abort();
}
static char* sh_base; static size_t sh_size; static int tsan_blocks = 0;
SHIM_NOSAN static int find_tls(dl_phdr_info* i, size_t, void* self) {
  bool mine = false; size_t n = 0;
  for (int k = 0; k < i->dlpi_phnum; k++) { auto& p = i->dlpi_phdr[k]; uintptr_t a = i->dlpi_addr + p.p_vaddr;
    if (p.p_type == PT_LOAD && (uintptr_t)self >= a && (uintptr_t)self < a + p.p_memsz) mine = true; if (p.p_type == PT_TLS) n = p.p_memsz; }
  if (!mine) return 0; sh_base = (char*)i->dlpi_tls_data; sh_size = sh_base ? n : 0; return 1; }
static thread_local volatile char tls_touch;
#if defined(__SANITIZE_THREAD__)
static void* blk; static std::vector<void*> blks;
#endif
SHIM_NOSAN static void run_block() {
#if defined(__SANITIZE_THREAD__)
  if (tsan_blocks) for (unsigned i = 0; i < NT; i++) mmap(F[i].stk, STK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
#endif
  alive = NT; arrived_n = 0; err[0] = 0; for (unsigned i = 0; i < 32; i++) { W[i].ng = 0; W[i].exist = 0; }
  if (sh_size) memset(sh_base, 0xff, sh_size);          // poison __shared__: NaN / -1
  if (dyn_sz) memset(dyn, 0xff, dyn_sz);
  for (unsigned i = 0; i < NT; i++) { Fiber& f = F[i]; f.lin = i; f.lane = i & 31; f.warp = &W[i >> 5]; W[i >> 5].exist |= 1u << (i & 31);
    f.tid.x = i % g_bdim.x; f.tid.y = i / g_bdim.x % g_bdim.y; f.tid.z = i / (g_bdim.x * g_bdim.y); f.st = READY; f.line = 0; f.fake = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(f.stk, STK);   // frames of the last block's threads
#endif
#if defined(__x86_64__) && !defined(SHIM_UCONTEXT)
    void** p = (void**)(f.stk + STK); *--p = nullptr; *--p = (void*)entry; for (int k = 0; k < 6; k++) *--p = nullptr; f.sp = p;
#else
    getcontext(&f.uc); f.uc.uc_stack.ss_sp = f.stk; f.uc.uc_stack.ss_size = STK; f.uc.uc_link = nullptr; makecontext(&f.uc, (void(*)())entry, 0);
#endif
#if defined(__SANITIZE_THREAD__)
    // races between blocks: one TSan identity per block, never reused in a launch (a reused id hides races), fresh stacks
    if (tsan_blocks) { if (!i) { blk = __tsan_create_fiber(0); blks.push_back(blk); } f.tsan = blk; } else f.tsan = __tsan_create_fiber(0);
#endif
  }
  cur = &MAINF; MAINF.st = DONE;
  jump(pick());
#if defined(__SANITIZE_THREAD__)
  if (!tsan_blocks) { for (unsigned i = 0; i < NT; i++) __tsan_destroy_fiber(F[i].tsan); __tsan_acquire(&launch_tag); }
#endif
}
template<class K> struct Sig;
template<class... A> struct Sig<void(*)(A...)> {
  template<size_t... I> static void call(void(*k)(A...), void** a, std::index_sequence<I...>) { k(*(std::remove_const_t<A>*)a[I]...); }
  struct Ctx { void(*k)(A...); void** a; };
  static void tramp(void* c) { auto* x = (Ctx*)c; call(x->k, x->a, std::index_sequence_for<A...>{}); }
  static const char* types() { static std::string s; if (s.empty()) { auto add = [&](const std::type_info& t, size_t n, bool p) {
      int st; char* d = abi::__cxa_demangle(t.name(), 0, 0, &st); s += (d ? d : t.name()); s += ":" + std::to_string(n) + ";"; free(d); };
      (add(typeid(A), sizeof(A), std::is_pointer<A>::value), ...); } return s.c_str(); }
};
template<class K> SHIM_NOSAN int launch(K k, const unsigned* gb, size_t smem, void** args, int ord, uint64_t seed) {
  g_gdim = dim3{gb[0], gb[1], gb[2]}; g_bdim = dim3{gb[3], gb[4], gb[5]}; NT = gb[3] * gb[4] * gb[5]; order = ord; rng = seed * 2654435761u + 1;
  n_switch = n_bar = n_shfl = 0; err[0] = 0; if (NT < 1 || NT > MAXT) { snprintf(err, sizeof err, "bad block size %u", NT); return 1; }
  if (smem > (227u << 10)) { snprintf(err, sizeof err, "dynamic shared memory %zu too large", smem); return 1; }
  for (unsigned i = 0; i < NT; i++) if (!F[i].stk) { char* m = (char*)mmap(0, STK + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); mprotect(m, 4096, PROT_NONE); F[i].stk = m + 4096; }
  free(dyn); dyn = smem ? (unsigned char*)aligned_alloc(128, (smem + 127) / 128 * 128) : nullptr; dyn_sz = smem;
#if defined(__SANITIZE_THREAD__)
  MAINF.tsan = __tsan_get_current_fiber();
#endif
  tls_touch = 1; dl_iterate_phdr(find_tls, (void*)&entry);   // bounds of __shared__ = this library's TLS segment
#if defined(__SANITIZE_THREAD__)
  { const char* e = getenv("SHIM_TSAN_BLOCKS"); tsan_blocks = e && *e == '1';   // 0: races inside a block; 1: races between blocks (global memory)
    if (tsan_blocks && sh_size) AnnotateBenignRaceSized(__FILE__, __LINE__, sh_base, sh_size, "shared"); }
#endif
  typename Sig<K>::Ctx c{k, args}; thunk = Sig<K>::tramp; thunk_arg = &c;
  unsigned long nb = (unsigned long)gb[0] * gb[1] * gb[2];
  for (unsigned long i = 0; i < nb; i++) { unsigned long b = ord == 1 ? nb - 1 - i : i;
    g_bid.x = b % gb[0]; g_bid.y = b / gb[0] % gb[1]; g_bid.z = b / ((unsigned long)gb[0] * gb[1]); run_block(); if (err[0]) return 1; }
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&launch_tag); for (void* b : blks) __tsan_destroy_fiber(b); blks.clear();
#endif
  return 0;
}
} // namespace shim
#define threadIdx (shim::cur->tid)
#define blockIdx (shim::g_bid)
#define blockDim (shim::g_bdim)
#define gridDim (shim::g_gdim)
static const int warpSize = 32;
#define __syncthreads() shim::block_sync(__LINE__)
#define __syncthreads_or(p) shim::block_sync(__LINE__, p, 0)
#define __syncthreads_and(p) shim::block_sync(__LINE__, p, 1)
#define __syncthreads_count(p) shim::block_sync(__LINE__, p, 2)
#define __syncwarp(...) ((void)shim::exchange<int>(shim::mask_or_full(__VA_ARGS__), 0, 0, __LINE__, true))
namespace shim { inline unsigned mask_or_full(unsigned m = 0xffffffffu) { return m; }
template<class T> SHIM_NOSAN T shfl(int ln, unsigned m, T v, int s, int w = 32) { return exchange(m, v, seg(cur->lane, w, s), ln); }
template<class T> SHIM_NOSAN T shfl_down(int ln, unsigned m, T v, unsigned d, int w = 32) { int l = cur->lane, s = l + (int)d; return exchange(m, v, (s & ~(w - 1)) == (l & ~(w - 1)) ? s : l, ln); }
template<class T> SHIM_NOSAN T shfl_up(int ln, unsigned m, T v, unsigned d, int w = 32) { int l = cur->lane, s = l - (int)d; return exchange(m, v, s >= (l & ~(w - 1)) ? s : l, ln); }
template<class T> SHIM_NOSAN T shfl_xor(int ln, unsigned m, T v, int x, int w = 32) { int l = cur->lane, s = l ^ x; return exchange(m, v, (s & ~(w - 1)) <= (l & ~(w - 1)) ? s : l, ln); }
inline unsigned char* dynamic_shared() { return dyn; }
}
#define __shfl_sync(...) shim::shfl(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) shim::shfl_down(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) shim::shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) shim::shfl_xor(__LINE__, __VA_ARGS__)
template<class T> inline T min(T a, T b) { return b < a ? b : a; }
template<class T> inline T max(T a, T b) { return a < b ? b : a; }
#define SHIM_EXPORT(id, ...) extern "C" int shim_launch_##id(const unsigned* gb, size_t smem, void** a, int ord, uint64_t seed) { return shim::launch(&__VA_ARGS__, gb, smem, a, ord, seed); } \
  extern "C" const char* shim_types_##id() { return shim::Sig<decltype(&__VA_ARGS__)>::types(); }
extern "C" inline __attribute__((used)) const char* shim_error() { return shim::err; }
extern "C" inline __attribute__((used)) void shim_stats(unsigned long* s) { s[0] = shim::n_switch; s[1] = shim::n_bar; s[2] = shim::n_shfl; }
