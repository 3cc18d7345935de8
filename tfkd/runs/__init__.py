"""One run, from config to artifacts, and its work directory."""
