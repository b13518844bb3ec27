# frozen_string_literal: true

# What a step writes has a unique idempotency key, the step's: a second attempt
# finds what the first one wrote.
class CreateShop < ActiveRecord::Migration[6.1]
  def change
    create_table :inventory_items do |t|
      t.string :sku, null: false, index: { unique: true }
      t.string :title, null: false
      t.integer :price_cents, null: false
      t.integer :on_hand, null: false
      t.integer :reserved, null: false, default: 0
      t.check_constraint "reserved BETWEEN 0 AND on_hand", name: "reserved_is_on_hand"
    end

    create_table :orders do |t|
      t.string :customer, null: false
      t.string :card_token, null: false
      t.integer :total_cents, null: false
      t.string :state, null: false, default: "placed"
      created_at(t)
    end

    create_table :order_items do |t|
      t.references :order, null: false, foreign_key: true
      t.string :sku, null: false
      t.integer :quantity, null: false
      t.integer :price_cents, null: false
    end

    create_table :reservations do |t|
      written_by_a_step(t, unique_with: :sku)
      t.string :sku, null: false
      t.integer :quantity, null: false
    end

    create_table :charges do |t|
      written_by_a_step(t)
      t.string :reference, null: false
      t.integer :amount_cents, null: false
      t.string :currency, null: false
    end

    create_table :shipments do |t|
      written_by_a_step(t)
      t.string :carrier, null: false
      t.string :tracking_number, null: false
      t.integer :price_cents, null: false
    end

    create_table :notifications do |t|
      written_by_a_step(t)
      t.string :subject, null: false
    end

    # The books of the pretended gateway, see PaymentGateway.
    create_table :gateway_requests do |t|
      t.string :idempotency_key, null: false, index: true
      t.string :answer, null: false
      created_at(t)
    end

    create_table :gateway_payments do |t|
      t.string :idempotency_key, null: false, index: { unique: true }
      t.string :reference, null: false
      t.integer :amount_cents, null: false
    end
  end

  private

  def written_by_a_step(table, unique_with: nil)
    table.references :order, null: false, foreign_key: true
    table.string :idempotency_key, null: false
    table.index [:idempotency_key, unique_with].compact, unique: true
    created_at(table)
  end

  # By the database: Rails before 7 sets no timestamps in `insert`.
  def created_at(table)
    table.datetime :created_at, null: false, default: -> { "CURRENT_TIMESTAMP" }
  end
end
