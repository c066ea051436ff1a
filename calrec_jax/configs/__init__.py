"""Gin files become runs here: they are parsed, checked, and their mistakes explained."""
