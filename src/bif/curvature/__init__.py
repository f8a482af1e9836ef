"""Products with, and extreme eigenvalues of, the Hessian and Gauss-Newton matrix."""
