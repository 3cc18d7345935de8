"""One run from config to artefacts, and what it leaves in its work directory."""
