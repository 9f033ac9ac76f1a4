"""What any network is asked: its inputs and outputs, its layers, counts, copies, devices."""
