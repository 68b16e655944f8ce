"""Long contexts shortened before a large model reads them, and how much of what they say survives."""
