"""The search over methods, ranks and learning rates: what to try, when to stop it, what won."""
