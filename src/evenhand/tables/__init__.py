"""Tables: from a file with named columns to a problem, and from outputs back to units."""
