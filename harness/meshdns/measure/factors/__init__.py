"""What a plan varies, a module for each knob: its levels, which cells they are possible in, what they take."""
