"""An engine whose frontend tries, in the executor, what executors are kept from."""
