"""What a device sends and receives: custody, order, receipts, and typing beside them.  Pure, as the core."""
