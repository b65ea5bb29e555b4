NOT_GRAFTABLE: dict[str, str] = {}
