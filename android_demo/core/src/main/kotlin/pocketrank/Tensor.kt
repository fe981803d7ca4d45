package pocketrank

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer

/** Element types that pocketrank's files and graphs have, by their names in a safetensors file; `title` is for people. */
enum class Type(val bytes: Int, val title: String) { I8(1, "int8"), I32(4, "int32"), I64(8, "int64"), F32(4, "float32") }

/**
 * Numbers with a shape: of a file that is mapped, or of a buffer that an engine reads and writes where it is.
 *
 * @property data little-endian, position 0 to limit; direct where an engine is to take it.
 */
class Tensor(val name: String, val type: Type, val shape: LongArray, val data: ByteBuffer) {
    val floats: FloatBuffer = data.asFloatBuffer()
    val ints: IntBuffer by lazy(LazyThreadSafetyMode.NONE) { data.asIntBuffer() }
    val longs: LongBuffer by lazy(LazyThreadSafetyMode.NONE) { data.asLongBuffer() }

    /** Number of elements. */
    val size: Int get() = data.limit() / type.bytes

    /** Length of an axis, from 0. */
    operator fun get(axis: Int): Int = shape[axis].toInt()

    fun floatArray(): FloatArray = FloatArray(size).also { floats.duplicate().get(it) }

    fun intArray(): IntArray = IntArray(size).also { ints.duplicate().get(it) }

    fun longArray(): LongArray = LongArray(size).also { longs.duplicate().get(it) }

    fun byteArray(): ByteArray = ByteArray(size).also { data.duplicate().get(it) }

    /** A part of the first axis, which shares the numbers; (n, ...) from `first` on. */
    fun part(first: Int, n: Int): Tensor {
        val each = if (shape[0] == 0L) 0 else data.limit() / this[0]
        return Tensor(name, type, longArrayOf(n.toLong()) + shape.drop(1), slice(data, first * each, n * each))
    }

    fun named(other: String): Tensor = Tensor(other, type, shape, data)

    override fun toString(): String = "$name ${type.name} ${shape.contentToString()}"

    companion object {
        /** Zeros, in a buffer that engines take as it is. */
        fun zeros(name: String, type: Type, vararg shape: Int): Tensor {
            val bytes = shape.fold(type.bytes.toLong()) { product, size -> Math.multiplyExact(product, size.toLong()) }
            val data = ByteBuffer.allocateDirect(Math.toIntExact(bytes)).order(ByteOrder.LITTLE_ENDIAN)
            return Tensor(name, type, LongArray(shape.size) { shape[it].toLong() }, data)
        }

        internal fun slice(data: ByteBuffer, begin: Int, bytes: Int): ByteBuffer {
            val part = data.duplicate()
            part.position(begin)
            part.limit(begin + bytes)
            return part.slice().order(ByteOrder.LITTLE_ENDIAN)
        }
    }
}
