"""Projects that ship with the platform. Nothing in the platform may import one."""
