"""Storage of objects in a local folder or in Google Cloud Storage, behind one interface."""
