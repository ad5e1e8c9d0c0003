"""How weights are moved: answers to gradients, gradients to steps, and which weights there are to move."""
