"""Training: the loop (`train`), its optimizer (`optim`), its files (`checkpoint`) and its voice (`log`)."""
