"""Back ends that tell who somebody is."""
