"""The bundled demo model: a small Mixtral trained on the Python standard library, and the recipe that made it."""
