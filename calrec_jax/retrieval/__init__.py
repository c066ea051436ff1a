"""From generated text to catalogue items."""
