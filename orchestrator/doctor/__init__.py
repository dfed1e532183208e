"""What `saga doctor` knows: checks that try things out, and say for each finding what to do."""
