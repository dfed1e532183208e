"""The functional core: no clock, no random source, no database, no broker, no logging."""
