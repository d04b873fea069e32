"""One file per dataset: `@register_template('Name') class Name(BaseFormatter)`. Imported on first use."""
