"""Re-indexing: what changed in the corpus is embedded, indexed, checked and published, safely when anything dies or races."""
