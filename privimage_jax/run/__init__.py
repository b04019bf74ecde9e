"""What a run is made of: the stages' records, what a stage is given, the privacy plan, mechanisms and publication."""
