package migrations

var Apply = apply
