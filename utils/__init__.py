"""How, never what: small named modules that every stage shares; imports no stage."""
