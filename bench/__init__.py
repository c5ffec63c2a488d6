"""The measuring programs: what hamirt costs, how exact its cap is, and whether it holds under stress."""
