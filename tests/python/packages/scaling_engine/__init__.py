"""A small inference engine: operators of its own, an object that names a layer, and (`frontend`) its part in a compile."""
