"""What ``guest/`` holds runs inside the virtual machine only."""

collect_ignore = ["guest"]
