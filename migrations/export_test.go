package migrations

var Apply = apply

// Secure is what each migration ends with.
func Secure() string { return ";\n" + secure }
