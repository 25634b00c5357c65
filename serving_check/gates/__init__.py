"""Gates and their evidence: structure, fidelity, hostile queries and the live release."""
