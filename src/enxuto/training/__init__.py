"""Training: what is made small (`objective`), what tightens meanwhile (`tighten`), and the loop around both."""
