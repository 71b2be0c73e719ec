"""Identity back ends: they authenticate users and look them up."""
