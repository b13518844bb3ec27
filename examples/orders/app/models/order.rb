# frozen_string_literal: true

# What a customer wants. state is what the customer is told: how far the
# workflow is, and why it stopped, is in tasker.task_summaries.
class Order < ApplicationRecord
  has_many :items, class_name: "OrderItem"
  has_many :reservations
  has_many :charges
  has_many :shipments
  has_many :notifications

  validates :state, inclusion: %w[placed payment_failed shipped fulfilled]
end
