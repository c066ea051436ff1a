"""Registrations of domains and mixtures; a run names a module of these in MIXTURE_OR_TASK_MODULE."""
