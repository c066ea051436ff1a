"""The one exception that users of calrec_jax are meant to read."""


class CalrecError(Exception):
    """A mistake that the user can mend: one line that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with a non-zero code. Everything else
    that is raised is a defect of calrec_jax or of the machine and keeps its traceback.
    """
