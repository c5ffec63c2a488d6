"""Programs that fill a card through one framework's allocator each; bench/accuracy.py runs them as tenants."""
