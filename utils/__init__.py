"""Parts that an unrelated audio project could take over unchanged: no project imports, no configuration."""
