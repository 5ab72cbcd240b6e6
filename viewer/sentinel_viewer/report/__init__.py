"""One HTML file that holds a whole run."""
