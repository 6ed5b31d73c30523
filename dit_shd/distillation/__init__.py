"""What the student takes from its teacher: losses, layer maps, and the weights it begins with."""
