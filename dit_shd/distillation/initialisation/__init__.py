"""A student that begins with weights of its teacher."""
