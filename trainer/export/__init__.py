"""From trained models to the files of an encoder bundle, and the proof that they agree."""
