"""Channel groups: what must be removed together, found on integer slots and proven by trial."""
