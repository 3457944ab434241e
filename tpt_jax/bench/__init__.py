"""How fast this machine samples, trains and checks, against what its devices allow."""
