"""Features of frozen towers: extracted once, cached, and served in batches."""
