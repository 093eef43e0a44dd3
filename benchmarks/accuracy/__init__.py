"""How accurate each method is on real models: error of every head, cost, and what the model loses."""
