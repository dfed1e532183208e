"""The whole system on one seed: everything that can go wrong between two calls does."""
