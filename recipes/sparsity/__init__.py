"""Training some entries of the weights and no others: which these are, how they move, when others replace them."""
