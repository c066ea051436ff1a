"""Items and histories as text and tokens, and back."""
