"""Registrations of domains and mixtures; a run names one in MIXTURE_OR_TASK_MODULE."""
